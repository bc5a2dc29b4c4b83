"""What commands draw with: theme, plots, shaded text, walkthrough pages and SVG recordings."""
