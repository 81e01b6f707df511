"""Score curation by consensus of neighbours (DS2)."""
