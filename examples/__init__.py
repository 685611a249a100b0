"""Pictures, captions and a tiny model that come with the repository."""
