"""A judge behind an OpenAI-compatible endpoint; replies are cached in a file, so that a second run repeats no request."""

import hashlib
import json
import pathlib
import threading
import time
import urllib.error
import urllib.request
from typing import Any

TRIES = 4
TIMEOUT_S = 120


class EndpointJudge:
  """Asks `POST url/chat/completions`.

  url: up to and including /v1. model: as the endpoint names it. key: sent as a bearer token and kept nowhere. cache: a JSON
  lines file of replies by a digest of what was asked (model, messages, sampling).
  """

  def __init__(self, url: str, model: str, cache: pathlib.Path, key: str | None = None):
    self.url, self.name, self._key, self._cache = url.rstrip('/'), model, key, cache
    self._lock = threading.Lock()
    self._known: dict[str, list[str]] = {}
    if cache.is_file():
      for line in cache.read_text(encoding='utf-8').splitlines():
        try:
          record = json.loads(line)
          self._known[record['digest']] = record['replies']
        except (ValueError, KeyError, TypeError):
          continue  # the last line of a run that was killed

  def __call__(self, prompt: str, *, system: str | None = None, n: int = 1, **sampling: Any) -> list[str]:
    """n replies. Raises ValueError when the endpoint gives none after four tries."""
    messages = [{'role': 'system', 'content': system}] if system else []
    body = {'model': self.name, 'messages': [*messages, {'role': 'user', 'content': prompt}], 'n': n, **sampling}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    with self._lock:
      if digest in self._known:
        return self._known[digest]
    replies = self._ask(body, n)
    with self._lock:
      self._known[digest] = replies
      self._cache.parent.mkdir(parents=True, exist_ok=True)
      with self._cache.open('a', encoding='utf-8') as file:
        file.write(json.dumps({'digest': digest, 'replies': replies}, ensure_ascii=False) + '\n')
    return replies

  def _ask(self, body: dict[str, Any], n: int) -> list[str]:
    """Replies from the endpoint; one by one where it does not know `n`."""
    replies: list[str] = []
    for attempt in range(TRIES + n):
      try:
        answer = self._post(body)
        replies += [choice['message']['content'].strip() for choice in answer['choices']]
        if len(replies) >= n:
          return replies[:n]
      except (urllib.error.URLError, TimeoutError, ValueError, KeyError, AttributeError) as e:
        if attempt >= TRIES - 1:
          raise ValueError(f'judge {self.name} at {self.url}: {e}') from e
        time.sleep(2**attempt)
    raise ValueError(f'judge {self.name} at {self.url}: {len(replies)} replies of {n}')

  def _post(self, body: dict[str, Any]) -> dict[str, Any]:
    headers = {'Content-Type': 'application/json'} | ({'Authorization': f'Bearer {self._key}'} if self._key else {})
    request = urllib.request.Request(f'{self.url}/chat/completions', json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
      return json.load(reply)
