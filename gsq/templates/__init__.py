"""Parts of one's own to start from; ``gsq new`` copies them, and each works as it is (gsq.templates.quantizer:Mine)."""
