"""Ask a model when something happens in a video, and see it."""

MOST_UPLOAD_MB = 2_000
"""Of videos that are kept at once, unless `--max-upload-mb` says otherwise."""
