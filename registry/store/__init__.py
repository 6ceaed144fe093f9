"""Object stores: one interface over a folder or an S3 bucket, resumable uploads, leases."""
