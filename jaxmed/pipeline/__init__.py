"""From records to global batches on the devices."""
