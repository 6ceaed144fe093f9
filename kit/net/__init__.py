"""Network: DNS lookup, routes, ranged and parallel HTTP downloads, retries."""
