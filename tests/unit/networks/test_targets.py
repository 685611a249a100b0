from networks.targets import PlannedModule, TargetRule, adapter_name, plan_modules


def test_first_matching_rule_decides_and_rank_0_skips():
    rules = [TargetRule(r"blocks\.0\..*", 0), TargetRule(r"blocks\.\d+\.fc", 4, 2.0), TargetRule(r".*", 8, None, 3)]
    planned = plan_modules(["blocks.0.fc", "blocks.1.fc", "blocks.1.proj"], rules)
    assert planned == (PlannedModule("blocks.1.fc", 4, 2.0, 1), PlannedModule("blocks.1.proj", 8, 8.0, 3))


def test_a_pattern_is_for_the_whole_name():
    assert not plan_modules(["blocks.1.fc1", "my.blocks.1.fc"], [TargetRule(r"blocks\.1\.fc", 4)])


def test_alpha_0_means_the_rank():
    assert plan_modules(["a"], [TargetRule("a", 4, 0.0)])[0].alpha == 4


def test_adapter_names_have_underscores():
    assert adapter_name("lora_unet", "joint_blocks.0.x_block.attn.qkv") == "lora_unet_joint_blocks_0_x_block_attn_qkv"
