#!/usr/bin/env bash
# Check that this machine is ready to go offline: everything the cluster needs is present and works without egress.
# Prints a line per check, and below a problem how to fix it. Needs only bash and docker.
#
#   scripts/doctor.sh           text
#   scripts/doctor.sh --json    {"ready": true, "checks": [{"status", "check", "detail", "mend"}]}
#
# It starts minio and registry from docker-compose.gpu-cluster.yml, without egress, and leaves them running. For each
# model it runs a container of its service, without GPU, that reads the model's files once; this fills the services'
# cache. A running cluster is not interrupted.
#
# exit status:  0 ready   1 something is wrong   2 wrong option   130 interrupted
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/docker.sh
. scripts/docker.sh
# shellcheck source=scripts/say.sh
. scripts/say.sh

json=no problems=0 checks=() scratch='' seen_models=' '

for option in "$@"; do
  case $option in
    --json) json=yes ;;
    --help | -h) usage && exit 0 ;;
    *) printf 'There is no option %s. scripts/doctor.sh --help lists the options.\n' "$option" >&2 && exit 2 ;;
  esac
done

# report STATUS CHECK DETAIL [FIX]
report() {
  [[ $1 != problem ]] || problems=$((problems + 1))
  if [[ $json == yes ]]; then
    checks+=("{\"status\": $(quoted "$1"), \"check\": $(quoted "$2"), \"detail\": $(quoted "$3"), \"mend\": $(quoted "${4:-}")}")
    return
  fi
  local colour=$green
  [[ $1 != warning ]] || colour=$yellow
  [[ $1 != problem ]] || colour=$red
  printf '%s%-8s%s %-20s %s\n' "$colour" "$1" "$plain" "$2" "$3"
  [[ $1 == ok || -z ${4:-} ]] || printf '%30s%s\n' '' "$4"
}

# A string of JSON.
quoted() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  text=$(LC_ALL=C tr '\000-\037' ' ' <<<"$text")
  printf '"%s"' "${text% }"
}

verdict() {
  if [[ $json == yes ]]; then
    local list
    list=$(printf ',\n  %s' ${checks[@]+"${checks[@]}"})
    printf '{"ready": %s, "checks": [%s\n]}\n' "$( ((problems)) && echo false || echo true)" "${list#,}"
  elif ((problems)); then
    printf '\n%sNot ready: %d to fix.%s\n' "$red" "$problems" "$plain"
  else
    printf '\n%sReady.%s Disconnect from the internet and start: docker compose -f %s up -d\n' "$green" "$plain" "$CLUSTER_FILE"
  fi
  exit $((problems > 0))
}

# run_check CHECK COMMAND...: report the findings that a module of ours writes, or its failure to write any.
run_check() {
  local subject=$1 status check detail fix reported=no
  shift
  : >"$scratch/stderr"
  while IFS=$'\t' read -r status check detail fix; do
    case $status in
      ok | warning | problem) report "$status" "${check/#egress/$subject}" "$detail" "$fix" && reported=yes ;;
      *) printf '%s %s %s\n' "$status" "$check" "$detail" >>"$scratch/stderr" ;;
    esac
  done < <("$@" </dev/null 2>>"$scratch/stderr")
  [[ $reported == yes ]] || report problem "$subject" "the check failed: $(one_line "$(tail -n 3 "$scratch/stderr")")" \
    "Is the image of another version? scripts/offline-setup.sh builds it."
}

check_images() {
  local image missing=()
  for image in $(planned image "$wanted" | cut -f 1); do
    docker image inspect "$image" >/dev/null 2>&1 || missing+=("$image")
  done
  if ((${#missing[@]})); then
    report problem images "missing: ${missing[*]}" "Run scripts/offline-setup.sh with internet, or transfer them with docker save and docker load."
  else
    report ok images "all $(planned image "$wanted" | wc -l | tr -d ' ') of $CLUSTER_FILE are present"
  fi
}

check_gpus() {
  local id user reserved wrong='' count
  reserved=$(planned gpu "$wanted")
  [[ -n $reserved ]] || { report ok gpus "$CLUSTER_FILE reserves none" && return; }
  check_nvidia || { report problem nvidia "$detail" "$fix" && return; }
  count=$(grep -c '^GPU ' <<<"$gpus" || true)
  while IFS=$'\t' read -r id user; do
    if [[ $id =~ ^[0-9]+$ ]]; then
      ((id < count)) || wrong+=" $user is configured for GPU $id,"
    elif [[ $id != all && $gpus != *"$id"* ]]; then
      wrong+=" $user is configured for $id,"
    fi
  done <<<"$reserved"
  if [[ -n $wrong ]]; then
    report problem gpus "$detail, but$wrong see nvidia-smi -L" "Change device_ids in $CLUSTER_FILE; several services may share one GPU."
  else
    report ok nvidia "$detail, and every device_ids names one of them"
  fi
}

check_ports() {
  local address port user holder taken=no
  while IFS=$'\t' read -r address port user; do
    [[ $address != 0.0.0.0 && $address != '::' ]] || address=127.0.0.1
    (exec 3<>"/dev/tcp/$address/$port") 2>/dev/null || continue
    holder=$(docker ps --filter "publish=$port" --format '{{.Label "com.docker.compose.project"}} {{.Names}}' | head -1)
    [[ $holder != "$project "* ]] || continue
    taken=yes
    if [[ -n $holder ]]; then holder="the container ${holder#* }"; else holder='another program'; fi
    report problem ports "$port ($user) is in use by $holder" \
      "Stop it (find it: sudo ss -ltnp 'sport = :$port'), or change the published port of $user."
  done < <(planned port "$wanted")
  [[ $taken == yes ]] || report ok ports "all free, or used by this cluster: $(planned port "$wanted" | cut -f 2 | sort -un | tr '\n' ' ')"
}

check_secrets() {
  local volume
  volume=$(planned volume "$wanted" | awk '$1 == "secrets" { print $2 }')
  [[ -n $volume ]] || return 0
  if docker volume inspect "$volume" >/dev/null 2>&1; then
    report ok secrets "the volume $volume exists"
  else
    report problem secrets "the volume $volume does not exist, so there is no model store yet" "Run scripts/offline-setup.sh with internet."
    return 1
  fi
}

start_registry() {
  local said others
  others=$(online ps --services 2>/dev/null | grep -vxE 'minio|registry|secrets' | tr '\n' ' ') || others=''
  if said=$(up_healthy cluster 2>&1); then
    report ok registry "minio and registry are healthy, started from $CLUSTER_FILE"
  else
    report problem registry "minio and registry do not become healthy: $(one_line "$(tail -n 2 <<<"$said")")" \
      "See why: docker compose -f $CLUSTER_FILE logs minio registry"
    return 1
  fi
  if [[ -n $others && -z $(cluster ps --quiet edge 2>/dev/null) ]]; then
    report warning registry "services of docker-compose.yml were running: $others" \
      "Their registry is now on the isolated network. docker compose up -d brings it back."
  fi
}

# The services' own images, environment and network, but no GPU: reading a tokenizer needs none.
check_models() {
  local service model image
  {
    printf 'services:\n'
    planned gpu "$wanted" | cut -f 2 | sort -u | while read -r service; do
      printf '  %s: {deploy: {resources: {reservations: {devices: !reset []}}}}\n' "$service"
    done
    printf '  registry: {}\n'
  } >"$scratch/no-gpu.yml"
  while IFS=$'\t' read -r service model <&3; do
    image=$(planned image "$wanted" | awk -F '\t' -v s="$service" '{ n = split($3, u, ","); for (i = 1; i <= n; i++) if (u[i] == s) print $1 }')
    if ! docker image inspect "$image" >/dev/null 2>&1; then
      report problem "model $model" "not checked: the image of $service is missing" "Run scripts/offline-setup.sh with internet."
      continue
    fi
    # Read each model once per image.
    if [[ $seen_models != *" $model@$image "* ]]; then
      seen_models+="$model@$image "
      run_check "model $model" in_service "$service" kit.tools.check_model
    fi
    run_check "egress $service" in_service "$service" kit.tools.egress
  done 3< <(planned model "$wanted")
}

# shellcheck disable=SC2329  # run_check calls it
in_service() {
  cluster -f "$scratch/no-gpu.yml" run --rm --no-deps -T --quiet-pull --entrypoint python "$1" -m "$2"
}

trap 'exit 130' INT TERM
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if check_docker; then report ok docker "$detail"; else report problem docker "$detail" "$fix" && verdict; fi
if check_compose; then report ok compose "$detail"; else report problem compose "$detail" "$fix" && verdict; fi
if ! said=$(cluster config --quiet 2>&1); then
  report problem compose "$CLUSTER_FILE: $(one_line "$said")" "Correct it, .env or CLUSTER_OVERRIDE." && verdict
fi
image=$(registry_image)
if ! docker image inspect "$image" >/dev/null 2>&1; then
  report problem images "the registry's image is missing: $image" "Run scripts/offline-setup.sh with internet." && verdict
fi
if ! wanted=$(plan cluster 2>"$scratch/stderr"); then
  report problem compose "cannot be evaluated: $(one_line "$(tail -n 2 "$scratch/stderr")")" "Is the image of another version? scripts/offline-setup.sh builds it."
  verdict
fi
project=$(cluster config | sed -n 's/^name: //p')
check_images
if check_room $((SPARE_GB * 1000000000)) 'for logs'; then report ok disk "$detail"; else report problem disk "$detail" "$fix"; fi
check_gpus
check_ports
if check_secrets && start_registry; then
  run_check registry cluster exec -T registry python -m registry check
  check_models
fi
verdict
