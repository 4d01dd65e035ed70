"""What the commands do: a recipe becomes data, a trained model, a diagnosis and an artefact."""
