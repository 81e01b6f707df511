"""What a chat model writes for MIXTURE: samples, poor variants, merged samples."""
