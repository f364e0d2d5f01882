"""The address `/picture/<digest>` under which a result's picture opens, beside Gradio's own."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.pictures import Pictures

_AT_ONCE = 2
"""A picture that is decoded may take a few hundred MB."""
_HEADERS = {
    "Cache-Control": "private, max-age=3600",
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}


def picture_route(pictures: Pictures) -> Route:
    """For the list of routes of the app that Gradio launches."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def show(request: Request) -> Response:
        async with turns:
            jpeg = await asyncio.to_thread(pictures.find, request.path_params["digest"])
        if jpeg is None:
            return Response("no such picture", status_code=404, media_type="text/plain")
        return Response(jpeg, media_type="image/jpeg", headers=_HEADERS)

    return Route("/picture/{digest}", show, methods=["GET"])
