#!/bin/sh
# A service's place in an nginx of the same machine: a file that `http { include /etc/nginx/upstreams/*.conf; }` takes in.
#
#   "hooks": {
#     "before_stop": {"command": ["/usr/local/lib/longshore/nginx-upstream.sh", "drain"]},
#     "after_start": {"command": ["/usr/local/lib/longshore/nginx-upstream.sh", "register"]}
#   }
#
# NGINX_UPSTREAMS  the folder [/etc/nginx/upstreams]
# NGINX_RELOAD     what makes nginx read it [nginx -s reload]; open connections are served to their end by it
# NGINX_DRAIN      seconds that are given to them [2]
set -eu
folder=${NGINX_UPSTREAMS:-/etc/nginx/upstreams}
file=$folder/$LONGSHORE_SERVICE.conf

# $1: what follows the server. The file is wholly old or wholly new, and nginx never has one that it refused.
put() {
  [ ! -e "$file" ] || cp "$file" "$file.before"
  printf 'upstream %s { server 127.0.0.1:%s%s; }\n' "$LONGSHORE_SERVICE" "$PORT" "$1" >"$file.new"
  mv "$file.new" "$file"
  if ! ${NGINX_RELOAD:-nginx -s reload}; then
    if [ -e "$file.before" ]; then mv "$file.before" "$file"; else rm -f "$file"; fi
    echo "nginx did not take $file" >&2
    exit 1
  fi
  rm -f "$file.before"
}

case ${1:-} in
  register) put '' ;;
  # An upstream needs a server: one that is down answers 502 at once.
  drain) put ' down'; sleep "${NGINX_DRAIN:-2}" ;;
  *) echo "usage: $0 register|drain" >&2; exit 2 ;;
esac
