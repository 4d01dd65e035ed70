"""The artefact and the predictor."""
