"""What every process needs: settings, logs, metrics, memory, retries."""
