"""Where vectors lie: the FAISS folder of this project (`index.opened`), or a Milvus collection."""
