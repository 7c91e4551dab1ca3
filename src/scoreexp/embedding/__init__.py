"""Score embedding: image-plane scores of training images, solved, cached and moved into their pixel values."""

from scoreexp.embedding.transport import EmbeddedImages, ImageEmbedding, embed_scores

__all__ = ["EmbeddedImages", "ImageEmbedding", "embed_scores"]
