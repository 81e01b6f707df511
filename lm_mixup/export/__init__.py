"""What a run made, as a Hugging Face data set: a folder of Parquet files with a card, or one on the Hub."""
