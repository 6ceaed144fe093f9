"""Backend discovery: a fixed list, DNS, or a watched file upserts and removes targets."""
