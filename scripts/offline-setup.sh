#!/usr/bin/env bash
# Prepare this machine for offline use, once, with internet: build or pull every image of the cluster, mirror every model
# of models.yaml and verify its digests. Needs only bash and docker.
#
#   scripts/offline-setup.sh                  everything
#   scripts/offline-setup.sh qwen minilm      the images, and these models
#
#   --jobs N        download at most N models at once (the registry's own limit is REGISTRY_JOBS, 2 by default)
#   --skip-images   do not build or pull images
#   --no-verify     do not read the fetched files again
#   --bundle DIR    at the end export images and models as a signed bundle, for a machine without a network
#   --sign-with F   the secret key for it (bundle.key, generated if missing); see scripts/bundle.sh --help
#   --help          this text
#
# Safe to interrupt at any point: the same command resumes. Files that are present are not fetched again. Gated models
# need HF_TOKEN (or HF_TOKEN_FILE) in the environment or in .env.
#
# exit status:  0 everything is present   1 something could not be fetched, or no space left   2 wrong option or model
#               69 Docker cannot be used, or the registry does not respond   130 interrupted
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/docker.sh
. scripts/docker.sh
# shellcheck source=scripts/say.sh
. scripts/say.sh

# Restarts of the registry before this script gives up.
readonly RESTARTS=10

# Progress bars are for terminals.
quiet=(--quiet)
[[ ! -t 1 ]] || quiet=()
names=() jobs='' images=yes verify=yes bundle='' sign_with='' child='' failures=()

interrupted() {
  trap '' INT TERM
  [[ -z $child ]] || kill "$child" 2>/dev/null || true
  printf '\n' >&2
  warn "Interrupted. Containers and downloaded bytes stay, and the registry continues its current downloads."
  warn "To resume, run the same command again: scripts/offline-setup.sh${given:+ $given}"
  exit 130
}

# Run a command so that this script handles a signal at once and not after the command. On a terminal the command gets
# the signal too.
follow() {
  local code=0
  if [[ -t 0 && -t 1 ]]; then
    "$@" || code=$?
  else
    "$@" </dev/null &
    child=$!
    wait "$child" || code=$?
    child=''
  fi
  ((code != 130)) || interrupted
  return "$code"
}

options() {
  while (($#)); do
    case $1 in
      --jobs | --jobs=*)
        if [[ $1 == --jobs ]]; then jobs=${2:-} && shift; else jobs=${1#*=}; fi
        [[ $jobs =~ ^[1-9][0-9]*$ ]] || stop 2 "--jobs needs a number from 1, not '$jobs'."
        ;;
      --skip-images) images=no ;;
      --no-verify) verify=no ;;
      --bundle=* | --sign-with=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" && continue ;;
      --bundle) bundle=${2:-} && [[ -n $bundle ]] || stop 2 "--bundle needs the folder to write to." && shift ;;
      --sign-with) sign_with=${2:-} && [[ -n $sign_with ]] || stop 2 "--sign-with needs the file of a secret key." && shift ;;
      --help | -h) usage && exit 0 ;;
      -*) stop 2 "There is no option $1." "scripts/offline-setup.sh --help lists the options." ;;
      *) names+=("$1") ;;
    esac
    shift || true
  done
}

# Reject a name that is nowhere in the catalogue now, and not after the images. The registry checks names exactly.
check_names() {
  local file name
  file=$(cluster config 2>/dev/null | sed -n '/^configs:/,/^[a-z]/s/^    file: //p' | head -1)
  [[ -n $file && -r $file ]] || file=models.yaml
  [[ -r $file ]] || stop 2 "The catalogue $file does not exist." "Run this in a checkout of the project, or set CATALOGUE."
  for name in ${names[@]+"${names[@]}"}; do
    grep -qwF -- "$name" "$file" ||
      stop 2 "Unknown model $name." "Models of $file: $(sed -n 's/^\([A-Za-z0-9][A-Za-z0-9._-]*\):.*/\1/p' "$file" | paste -sd ' ' -)"
  done
}

check_host() {
  step "This machine"
  check_docker || stop 69 "Docker: $detail." "$fix"
  note "Docker: $detail"
  check_compose || stop 69 "Compose: $detail." "$fix"
  note "$detail"
  [[ -f $CLUSTER_FILE ]] || stop 69 "$CLUSTER_FILE does not exist." "Run this in a checkout of the project."
  local said
  said=$(cluster config --quiet 2>&1) || stop 69 "$CLUSTER_FILE: $(one_line "$said")" "Correct it, .env or CLUSTER_OVERRIDE."
  said=$(online config --quiet 2>&1) || stop 69 "docker-compose.yml: $(one_line "$said")" "Correct it, .env or COMPOSE_FILE."
  check_names
  if check_nvidia; then
    note "NVIDIA: $detail"
  else
    warn "NVIDIA: $detail. The setup does not need it, the cluster does."
    note "$fix"
  fi
}

# Missing images need space; the sizes of the models are queried once the registry runs.
check_disk_for_images() {
  [[ $images == yes ]] || return 0
  local needed=$SPARE_GB what='for logs' image
  for image in $(cluster config --images | sort -u); do
    docker image inspect "$image" >/dev/null 2>&1 || { needed=$((IMAGES_GB + SPARE_GB)) what='for the images' && break; }
  done
  check_room $((needed * 1000000000)) "$what" || stop 1 "Not enough disk space: $detail." "$fix"
  note "Disk: $detail"
}

# Each image once: ours are built, the others pulled if missing. Failures are reported here and again at the end; the
# models are fetched all the same.
bring_images() {
  [[ $images == yes ]] || return 0
  step "Images"
  build registry "the registry's image" || stop 1 "The registry's image could not be built." "$build_fix"
  local wanted image how users
  wanted=$(plan cluster) || stop 1 "The plan of $CLUSTER_FILE could not be read." "See its message above."
  while IFS=$'\t' read -r image how users <&3; do
    if [[ ,$users, == *,registry,* ]]; then
      continue # built above, to make the plan
    elif [[ $how == build ]]; then
      build "${users%%,*}" "$image" || failures+=("$image could not be built. $build_fix")
    elif docker image inspect "$image" >/dev/null 2>&1; then
      note "$image is present"
    else
      note "pulling $image for ${users//,/, }"
      follow docker pull ${quiet[@]+"${quiet[@]}"} "$image" || {
        failures+=("$image could not be pulled. On a machine that has it: docker save $image | gzip > image.tar.gz; here: gunzip -c image.tar.gz | docker load")
        warn "$image could not be pulled."
      }
    fi
  done 3< <(planned image "$wanted")
  local off
  off=$(planned off "$wanted" | cut -f 3 | tr '\n,' '  ')
  [[ -z $off ]] || note "switched off, not fetched: ${off% }. To include them, set their variables (.env.example) and run this again."
}

readonly build_fix='See the message of docker above. PYTHON_IMAGE, VLLM_IMAGE and PIP_INDEX_URL name mirrors for the build.'
build() {
  note "building $2"
  follow "${CLUSTER[@]}" build ${quiet[@]+"${quiet[@]}"} "$1" || { warn "$2 could not be built." && return 1; }
}

container() { online ps --all --quiet "$1" 2>/dev/null | head -1; }

# Start times of minio and registry, to detect a restart.
running_since() {
  local service
  for service in minio registry; do
    docker inspect --format '{{if .State.Running}}{{.State.StartedAt}}{{else}}down{{end}}' "$(container "$service")" 2>/dev/null || printf 'down\n'
  done
}

open_registry() {
  step "Registry"
  local id from said opened
  id=$(container registry)
  from=$([[ -z $id ]] || docker inspect --format '{{index .Config.Labels "com.docker.compose.project.config_files"}}' "$id" || true)
  if [[ $from == *"$CLUSTER_FILE"* ]]; then
    warn "The cluster is running, and its registry has no egress: restarting minio and registry from docker-compose.yml."
    warn "Until you run 'docker compose -f $CLUSTER_FILE up -d', the cluster cannot be reached from outside."
    # edge publishes the ports that minio and registry publish themselves now.
    cluster stop edge >/dev/null 2>&1 || true
  fi
  start_registry || not_healthy
  if said=$(plan online 2>/dev/null); then
    opened=$(planned open "$said")
    grep -qx registry <<<"$opened" ||
      stop 1 "The registry of ${COMPOSE_FILE:-docker-compose.yml} has no access to the internet." "Unset COMPOSE_FILE for this command."
  fi
  reread_catalogue
}

not_healthy() {
  online logs --no-log-prefix --tail 3 minio registry >&2 || true
  stop 69 "minio and registry do not become healthy." "See the end of their logs above, and: docker compose logs minio registry"
}

start_registry() {
  [[ -t 1 ]] || export COMPOSE_PROGRESS=quiet
  up_healthy follow "${ONLINE[@]}"
}

# The registry reads models.yaml at its start, and after an editor replaced the file its mount is still the old one.
reread_catalogue() {
  local id started file edited
  id=$(container registry)
  started=$(docker inspect --format '{{.State.StartedAt}}' "$id" 2>/dev/null || true)
  file=$(docker inspect --format '{{range .Mounts}}{{if eq .Destination "/app/models.yaml"}}{{.Source}}{{end}}{{end}}' "$id" 2>/dev/null || true)
  [[ -n $started && -n $file && -r $file ]] || return 0
  edited=$(date -u -r "$file" +%Y-%m-%dT%H:%M:%S) || return 0
  [[ $edited > $started ]] || return 0
  note "models.yaml has changed: restarting the registry"
  follow "${ONLINE[@]}" restart registry
  start_registry || not_healthy
}

in_registry() {
  local tty=()
  [[ -t 0 && -t 1 ]] || tty=(-T)
  follow "${ONLINE[@]}" exec ${tty[@]+"${tty[@]}"} registry python -m registry "$@"
}

# A line per model: its name, its size, the missing bytes.
sizes() {
  online exec -T registry python -m registry sizes ${names[@]+"${names[@]}"} </dev/null 2>/dev/null
}

# Models are stored twice: in the store and in the services' cache.
check_disk_for_models() {
  local listed missing needed=0 what='for the models'
  # A second try if the registry went away meanwhile.
  if listed=$(sizes) || { start_registry && listed=$(sizes); } && [[ -n $listed ]]; then
    while IFS=$'\t' read -r _ _ missing _; do
      [[ $missing =~ ^[0-9]+$ ]] && needed=$((needed + 2 * missing))
    done <<<"$listed"
  else
    needed=$((MODELS_GB * 1000000000)) what='for the models, by estimate'
  fi
  ((needed > 0)) || return 0
  check_room $((needed + SPARE_GB * 1000000000)) "$what (in the store and in the services' cache)" || stop 1 "Not enough disk space: $detail." "$fix"
  note "Disk: $detail"
}

mirror() {
  step "Models"
  check_disk_for_models
  local arguments=(mirror) code tries=0 before after
  [[ -z $jobs ]] || arguments+=(--jobs "$jobs")
  [[ $verify == yes ]] || arguments+=(--no-verify)
  arguments+=(${names[@]+"${names[@]}"})
  while :; do
    before=$(running_since) code=0
    in_registry "${arguments[@]}" || code=$?
    after=$(running_since)
    # The command's own exit status counts, unless registry or store restarted meanwhile.
    if ((code == 0)) || [[ $after == "$before" && $after != *down* && $code =~ ^[12]$ ]]; then return "$code"; fi
    ((++tries <= RESTARTS)) || stop 69 "The registry or minio went away $RESTARTS times." "See why: docker compose logs minio registry"
    warn "The registry or minio went away (exit $code). Resuming ($tries of $RESTARTS)."
    start_registry || not_healthy
  done
}

given=$*
# Compose passes HF_TOKEN on; HF_TOKEN_FILE is read here, on the host.
if [[ -z ${HF_TOKEN:-} && -n ${HF_TOKEN_FILE:-} ]]; then
  [[ -r $HF_TOKEN_FILE ]] || stop 2 "HF_TOKEN_FILE=$HF_TOKEN_FILE cannot be read."
  HF_TOKEN=$(<"$HF_TOKEN_FILE")
  export HF_TOKEN
fi
options "$@"
trap interrupted INT TERM
check_host
check_disk_for_images
bring_images
open_registry
code=0
mirror || code=$?
((code != 2)) || exit 2
((code == 0)) || failures+=("Some models failed; the table says why.")
if ((${#failures[@]})); then
  step "Not complete"
  for failure in "${failures[@]}"; do printf '%sxx %s%s\n' "$red" "$failure" "$plain" >&2; done
  stop 1 "Fix that and run the same command again: scripts/offline-setup.sh${given:+ $given}"
fi
if [[ -n $bundle ]]; then
  arguments=(export "$bundle" ${sign_with:+--sign-with "$sign_with"} ${names[@]+"${names[@]}"})
  [[ $images == yes ]] || arguments+=(--skip-images)
  follow scripts/bundle.sh "${arguments[@]}" || exit
fi
printf '\n%sEverything is present.%s Check it, disconnect from the internet, and start the cluster:\n' "$green" "$plain"
printf '   scripts/doctor.sh\n   docker compose -f %s up -d\n' "$CLUSTER_FILE"
