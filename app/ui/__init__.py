"""The page, one file per part. Only this package imports gradio."""
