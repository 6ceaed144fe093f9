"""Models by name, commit and digest: mirrored once, served for ever, spoken to as the Hugging Face Hub."""
