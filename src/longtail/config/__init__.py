"""All settings (schema), and recipes: YAML files of settings."""
