"""audit-cli: may this image model be deployed?"""
