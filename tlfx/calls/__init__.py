"""A call of an aligned model: its target is checked, a plan is found or made for it, and the plan runs."""
