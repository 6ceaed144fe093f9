"""vLLM's images by our rules: what may be fetched, and how large an image may be before anything is decoded.

vLLM takes its reader of media from a registry by the name in VLLM_MEDIA_CONNECTOR
(docs.vllm.ai, "Multimodal Inputs", and `vllm/multimodal/media/connector.py`); the decoding stays its own.
"""

import asyncio
from typing import Any

from kit.errors import ApiError
from services.llm.image_source import ImageSource
from services.llm.images import BROKEN, open_unread

CONNECTOR = "gpu_cluster"


def register(source: ImageSource) -> None:
    """Have vLLM read its media through `source`. Imports vLLM; the environment names CONNECTOR by then."""
    from vllm.exceptions import VLLMClientError, VLLMValidationError
    from vllm.multimodal.media.connector import MEDIA_CONNECTOR_REGISTRY, MediaConnector, global_thread_pool
    from vllm.multimodal.media.image import ImageMediaIO

    def load(content: bytes, media_io: Any) -> Any:
        open_unread(content, source.limits).close()
        return media_io.load_bytes(content)

    class Checked(MediaConnector):  # type: ignore[misc]  # vLLM is not there where types are checked
        """Reads images through `source`; whatever is wrong with a medium is the client's error."""

        async def load_from_url_async(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
            """What `media_io` makes of the medium at `url`."""
            try:
                if isinstance(media_io, ImageMediaIO) and not self._is_local(url):
                    content = await source.read(url)
                    return await asyncio.get_running_loop().run_in_executor(global_thread_pool, load, content, media_io)
                if url[:5].lower() != "data:" and not self._is_local(url):
                    raise VLLMValidationError("Only images are fetched. Send audio and video as data URIs.")
                return await super().load_from_url_async(url, media_io, fetch_timeout=fetch_timeout)
            except ApiError as error:
                raise VLLMValidationError(error.message) from error
            except BROKEN as error:
                if isinstance(error, VLLMClientError):
                    raise
                raise VLLMValidationError(f"A medium is broken: {error}.") from error

        def load_from_url(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
            """vLLM's server never calls this; what would fetch without our rules fails."""
            raise NotImplementedError("media are read on the event loop only")

        def _is_local(self, url: str) -> bool:
            return self.allowed_local_media_path is not None and url[:5].lower() == "file:"

    MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)(Checked)
