"""Questions over the stores of several regions, answered once: asked side by side, merged, each event shown once."""
