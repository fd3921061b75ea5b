"""Files from elsewhere: listed, downloaded once, resumed, verified. Knows neither models nor conversations.

hub        one hub, by its own library: hub_huggingface, hub_modelscope
addresses  the same for https://, s3:// and oss://
download   a repository's files into a folder: verified, with a record that marks them complete
"""
