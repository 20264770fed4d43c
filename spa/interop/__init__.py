"""Other frameworks' networks and passes; each module imports its framework, so none is imported from here."""
