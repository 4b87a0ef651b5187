"""Downloads of models: from repositories of a hub that speaks Hugging Face's HTTP API, or from a plain URL."""
