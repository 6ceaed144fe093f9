"""Request bodies: memory and disk budgets, and the fields that routing needs."""
