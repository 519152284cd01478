"""What a person looks at: recipes, reports of runs, runs side by side."""
