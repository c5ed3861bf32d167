"""One module an article: its figures, drawn from its tidy tables; never imports torch."""
