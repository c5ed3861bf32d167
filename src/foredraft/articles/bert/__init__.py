"""Article 07: BERT written from scratch."""
