"""How programs read LoRA files: for each, which keys it knows and what it makes of them, as rules of our own.

Nothing here converts a file. The rules are what a converted or trained file is compared with.
"""
