"""Raw data into shards: what all modalities share."""
