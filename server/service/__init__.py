"""Service: a trained model behind HTTP, with a page to try it; FastAPI and uvicorn are imported nowhere else."""
