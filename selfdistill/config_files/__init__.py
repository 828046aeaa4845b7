"""A checked config from a YAML file and overrides, and what to say where it cannot be one."""
