"""From recipes and given models to sources, tasks and settings; where a run keeps what."""
