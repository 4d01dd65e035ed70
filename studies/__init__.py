"""Studies: behaviour that papers claim, measured over seeds on data whose truth is known."""
