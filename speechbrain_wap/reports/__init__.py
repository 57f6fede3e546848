"""What a user reads of a run: results in Markdown, the page, figures."""
