"""What a reader sees: tables, figures, and the study on one page. Needs no torch."""
