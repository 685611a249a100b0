"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;
  const grid = byId("grid");
  const cards = Array.from(grid.querySelectorAll(".card"), (element) => ({
    element,
    text: element.textContent.toLowerCase(),
    bucket: [element.dataset.bucket],
    set: [element.dataset.set],
    flag: element.dataset.flags.split(" "),
  }));
  const buttons = Array.from(document.querySelectorAll("button[data-group]"));
  const groups = ["flag", "bucket", "set"];
  const chosen = { flag: new Set(), bucket: new Set(), set: new Set() };
  const search = byId("search");

  // Within a group any chosen value will do; the groups and the search all have to agree.
  const passes = (card, except) =>
    groups.every((group) => group === except || chosen[group].size === 0 || card[group].some((v) => chosen[group].has(v)));

  function apply() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = cards.filter((card) => words.every((word) => card.text.includes(word)));
    let visible = 0;
    const shown = new Set(found.filter((card) => passes(card, null)));
    for (const card of cards) {
      card.element.hidden = !shown.has(card);
      visible += shown.has(card) ? 1 : 0;
    }
    const numbers = new Map();
    for (const button of buttons) {
      const { group, value } = button.dataset;
      const number = found.filter((card) => passes(card, group) && card[group].includes(value)).length;
      button.querySelector(".count").textContent = number.toLocaleString("en");
      button.setAttribute("aria-pressed", String(chosen[group].has(value)));
      if (group === "bucket") numbers.set(button, number);
    }
    const most = Math.max(1, ...numbers.values());
    for (const [button, number] of numbers) button.style.setProperty("--share", `${(100 * number) / most}%`);
    byId("visible").textContent = visible.toLocaleString("en");
    byId("nothing").hidden = visible > 0;
    byId("clear").hidden = words.length === 0 && groups.every((group) => chosen[group].size === 0);
  }

  function remember() {
    const state = new URLSearchParams();
    if (search.value) state.set("search", search.value);
    for (const group of groups) for (const value of chosen[group]) state.append(group, value);
    history.replaceState(null, "", `${state}` ? `#${state}` : location.pathname + location.search);
  }

  function recall() {
    const state = new URLSearchParams(location.hash.slice(1));
    search.value = state.get("search") || "";
    for (const group of groups) chosen[group] = new Set(state.getAll(group));
    apply();
  }

  function clear() {
    search.value = "";
    for (const group of groups) chosen[group].clear();
    apply();
    remember();
  }

  for (const button of buttons) {
    button.addEventListener("click", () => {
      const values = chosen[button.dataset.group];
      if (!values.delete(button.dataset.value)) values.add(button.dataset.value);
      apply();
      remember();
    });
  }
  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { apply(); remember(); }, 120);
  });
  byId("clear").addEventListener("click", () => { clear(); search.focus(); });
  addEventListener("hashchange", recall);
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      search.focus();
    } else if (event.key === "Escape") {
      clear();
    }
  });

  for (const input of document.querySelectorAll("input[name=view]")) {
    input.addEventListener("change", () => grid.classList.toggle("view-trained", input.value === "trained" && input.checked));
  }
  if (byId("masks")) {
    byId("masks").addEventListener("change", () => grid.classList.toggle("no-masks", !byId("masks").checked));
  }
  byId("order").addEventListener("change", () => {
    const key = byId("order").value;
    const sign = key === "order" ? 1 : -1;
    const number = (card) => sign * Number(card.element.dataset[key]);
    const place = (card) => Number(card.element.dataset.order);
    cards.sort((a, b) => number(a) - number(b) || place(a) - place(b));
    grid.append(...cards.map((card) => card.element));
  });

  const theme = byId("theme");
  const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const tellTheme = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", isDark() ? "Use light colours" : "Use dark colours");
    theme.removeAttribute("aria-pressed");
  };
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; tellTheme(); });

  tellTheme();
  recall();
})();
