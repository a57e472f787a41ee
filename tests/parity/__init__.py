"""Our numbers beside the reference's: transformers with torch on CPU, float32."""
