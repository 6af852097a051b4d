"""From overrides to checked components: what can be chosen, and what is refused."""
