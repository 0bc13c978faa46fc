"""Rule files: `parse` reads them, `model` is what they say."""
