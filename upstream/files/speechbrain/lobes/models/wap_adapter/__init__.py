"""An adapter with local attributes for speech emotion recognition."""
