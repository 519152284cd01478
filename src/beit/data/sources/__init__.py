"""What pictures there are: folders, shards, packs, data sets by name, what is handed over."""
