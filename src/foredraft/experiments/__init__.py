"""One module an article: parameters in, tidy table out."""
