"""From a catalogue and an embedder to a folder that can be searched, and back to hits."""
