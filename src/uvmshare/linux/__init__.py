"""What Linux offers and several parts need: standard library only, since guests get a copy of it."""
