"""Evidence for an audit: what one model shows, text by text, beside its table."""
