"""vLLM's media connector with our rules: allowed sources, and limits checked before an image is decoded.

vLLM selects the connector by the name in VLLM_MEDIA_CONNECTOR
(docs.vllm.ai, "Multimodal Inputs", and `vllm/multimodal/media/connector.py`). vLLM still decodes.
"""

import asyncio
from typing import Any

from kit.errors import ApiError
from services.llm.images.decoding import DECODE_ERRORS, open_lazily
from services.llm.images.source import ImageSource

CONNECTOR = "gpu_cluster"


def register(source: ImageSource) -> None:
    """Register a connector that reads images through `source`. Imports vLLM; VLLM_MEDIA_CONNECTOR must be set."""
    from vllm.exceptions import VLLMClientError, VLLMValidationError
    from vllm.multimodal.media.connector import MEDIA_CONNECTOR_REGISTRY, MediaConnector, global_thread_pool
    from vllm.multimodal.media.image import ImageMediaIO

    def load(content: bytes, media_io: Any) -> Any:
        open_lazily(content, source.limits).close()
        return media_io.load_bytes(content)

    class CheckedConnector(MediaConnector):  # type: ignore[misc]  # vLLM is not installed where types are checked
        """Reads images through `source`, and reports errors as the client's."""

        async def load_from_url_async(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
            """Return the medium at `url`, decoded by `media_io`."""
            try:
                if isinstance(media_io, ImageMediaIO) and not self._is_local(url):
                    content = await source.read(url)
                    return await asyncio.get_running_loop().run_in_executor(global_thread_pool, load, content, media_io)
                if url[:5].lower() != "data:" and not self._is_local(url):
                    raise VLLMValidationError("Only images may be fetched by URL. Send audio and video as data URIs.")
                return await super().load_from_url_async(url, media_io, fetch_timeout=fetch_timeout)
            except ApiError as error:
                raise VLLMValidationError(error.message) from error
            except DECODE_ERRORS as error:
                if isinstance(error, VLLMClientError):
                    raise
                raise VLLMValidationError(f"An image, audio or video is corrupt: {error}.") from error

        def load_from_url(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
            """Unused by vLLM's server; fail rather than fetch without our rules."""
            raise NotImplementedError("media are read only on the event loop")

        def _is_local(self, url: str) -> bool:
            return self.allowed_local_media_path is not None and url[:5].lower() == "file:"

    MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)(CheckedConnector)
